"""Programs that tests run in processes of their own, each a module with the test's side in tests.iothread.

A program and its test speak in lines, on the program's standard input and output. What it has to complain about is on
its standard error, which therefore stays empty.
"""
