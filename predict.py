"""Say which digit a picture shows: ``python predict.py IMAGE…``. ``--help`` lists the flags.

``pictures.py`` brings each picture into MNIST's own form; its docstring has the algorithm.
"""
