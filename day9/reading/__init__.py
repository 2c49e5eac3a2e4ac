"""Reads labelled texts and checks them; what cannot be read as written is refused in one line.

Whatever the format, only columns of strings are wanted, so nothing is guessed:
a value comes through as it was written, or an InputError says why it cannot.

    splits     `load_splits`: train, validation and test from a file, a folder or the hub
    files      `read_table`: one file of any format
    csvfile, jsonfile, parquet, hubdata: a file, or a split on the hub, as a Table
    textfile   UTF-8 and line ends
    tables     Table, and `store`, which keeps its rows as strings in a Dataset
    values     single values as strings
    audit      counts of what usually goes wrong with data

Written by hand, not tangled.
"""
