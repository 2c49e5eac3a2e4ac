"""Reads labelled texts as they were written, or says in one line why it cannot.

    splits     `load_splits`: train, validation and test; `read_table`: one file
    csvfile, jsonfile, parquet: a file, or a split on the hub, as a Table
    textfile   UTF-8 and line ends
    tables     Table, its columns, and `store`, which keeps its rows as strings
    values     single values as strings
    audit      counts of what usually goes wrong with data

Written by hand, not tangled.
"""
