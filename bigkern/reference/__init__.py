"""The oracle: every op in obvious NumPy, forward and backward, in the precision it is given (float64 in the tests).

Written so that it reads as the definition. It needs neither torch nor the C++ module.
"""
