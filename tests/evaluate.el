;; Evaluate every block of the visited org file, top to bottom, in one fresh session, and save the results.
;; The native completion set-up and the guessing of indentation lose results in batch Emacs: both are off.
(require 'ob-python)
(setq python-shell-completion-native-enable nil
      python-indent-guess-indent-offset nil
      org-confirm-babel-evaluate nil)
(org-babel-do-load-languages 'org-babel-load-languages '((python . t) (emacs-lisp . t)))
(org-babel-execute-buffer)
(save-buffer)
