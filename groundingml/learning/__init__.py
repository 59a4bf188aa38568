"""What people correct teaches the model: splits, training runs, measuring, promotion and rollback.

A run (`trainer.py`) trains on the corrected tasks of one project, measures the result on tasks that were
never trained on (`splits.py`, `measuring.py`), fits a threshold for each label (`fitting.py`), writes a
version folder (`versions.py`) and lets it serve only if it is better (`promotion.py`).
"""
