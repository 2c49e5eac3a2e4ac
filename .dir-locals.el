((org-mode . ((org-babel-python-command . ".venv/bin/python"))))
