"""Hostile files, made by scripts: what each must lead to stands beside how it is made. See README.md."""
