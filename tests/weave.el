;; Export the visited org file to HTML with the style of page.css, without running anything.
(require 'ox-html)
(setq org-babel-default-header-args (cons '(:eval . "never-export") org-babel-default-header-args)
      org-html-doctype "html5"
      org-html-html5-fancy t
      org-html-head-include-default-style nil
      org-html-head-include-scripts nil
      org-html-htmlize-output-type nil
      org-html-validation-link nil
      org-html-head (concat "<style>\n" (with-temp-buffer (insert-file-contents (getenv "PAGE_CSS")) (buffer-string)) "</style>"))
(org-html-export-to-html)
