;; Evaluate every block of the visited Org file, top to bottom, in one fresh session, and save the
;; results. The native completion set-up and the guessing of indentation lose results in batch
;; Emacs: both are off.
(require 'ob-python)
(setq python-shell-completion-native-enable nil
      python-indent-guess-indent-offset nil
      org-confirm-babel-evaluate nil)
(org-babel-do-load-languages 'org-babel-load-languages '((python . t) (emacs-lisp . t)))

;; A Python error leaves a block's partial output behind, and Emacs goes on: stop where
;; note_errors.py has noted one.
(add-hook 'org-babel-after-execute-hook
          (lambda ()
            (sleep-for 0.2)
            (when (file-exists-p (getenv "DAY9_ERRORS"))
              (message "a Python error in the block at line %d" (line-number-at-pos))
              (kill-emacs 3))))

;; At its first prompt Emacs sends the session some code of its own, and swallows what is printed
;; meanwhile: wait for that, then ask, and give up where nothing answers, so that another Emacs can
;; try. A prompt that is still on its way would become a result.
(defvar day9-ready nil)
(add-hook 'python-shell-first-prompt-hook (lambda () (setq day9-ready t)))
(defun day9-session-answers ()
  (with-timeout (30 nil)
    (let ((session (org-babel-python-initiate-session "day9")))
      (while (not day9-ready)
        (accept-process-output nil 0.1))
      (sleep-for 0.5)
      (prog1 (string-prefix-p "42" (format "%s" (org-babel-python-evaluate-session
                                                 session "print(6 * 7)" 'output nil)))
        (sleep-for 0.5)))))
(when (file-exists-p ".venv/bin/python")
  (setq org-babel-python-command (expand-file-name ".venv/bin/python")))
(unless (day9-session-answers)
  (message "the Python session did not answer")
  (kill-emacs 4))

(org-babel-execute-buffer)
(save-buffer)
