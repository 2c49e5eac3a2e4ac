((org-mode . ((indent-tabs-mode . nil) (fill-column . 80)))
 (python-mode . ((fill-column . 100))))
