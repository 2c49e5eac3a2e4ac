;; Export the visited Org file to HTML with the style of page.css, without running anything.
(require 'ox-html)
(setq-default indent-tabs-mode nil)  ; else code would be exported with tabs
(setq org-babel-default-header-args
      (cons '(:eval . "never-export") org-babel-default-header-args)
      org-html-doctype "html5"
      org-html-html5-fancy t
      org-html-head-include-default-style nil
      org-html-head-include-scripts nil
      org-html-htmlize-output-type nil
      org-html-validation-link nil
      org-html-head (with-temp-buffer
                      (insert-file-contents (getenv "PAGE_CSS"))
                      (concat "<style>\n" (buffer-string) "</style>")))
(org-html-export-to-html)
