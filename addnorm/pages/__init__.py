"""Our HTML pages, made from files and from what is handed in: nothing here knows a model, a task or
how one is trained.

A page is one HTML file: nothing is loaded from elsewhere, no script runs, plots are SVG. Lines are
labelled where they end and differ in strength, not in hue, so that a page can be read without
colours; every plot says in words what it shows.
"""
