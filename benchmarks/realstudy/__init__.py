"""The study of docs/study.md: `python -m benchmarks.realstudy --out FOLDER`, some forty minutes of one core.

design    what is studied: data sets, backbones, how much of everything
run       the commands, in one folder; stopped, it goes on
measure   rows -> the tables that are kept beside the page
values    those tables -> the named values that the page quotes
draw      those tables -> figures
page      a template and the values -> docs/study.md
"""
