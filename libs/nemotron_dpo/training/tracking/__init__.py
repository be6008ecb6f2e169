"""What runs trackers beside the training: a process for each, fed by a bounded queue, ended by a deadline.

`tracked` says what a tracker is given and must do, and `host` is the program of its process. `feed` is a process as the run
sees it; `trackers` opens those that a run asks for, remembers their runs in `memory`, and gives them the figures of `monitor`.
"""
