((org-mode . ((indent-tabs-mode . nil) (fill-column . 160))))
