"""What people look at, made from saved data: report.json, one HTML page, a model card, the lines on the terminal.

schema    the keys of report.json, reading and writing it, its JSON Schema
words     a figure's text and the verdict's sentence, one source for every medium
html      the page;  model_card  the README;  terminal  the summary;  text  makes strangers' names harmless

Nothing here opens a model or computes a measurement. Import the module that you need: pydantic and jinja2 load with it.
"""
