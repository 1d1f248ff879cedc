"""The oracle: every op in obvious NumPy, forward and backward, in the precision it is given (float64 in the tests).

Written so that it reads as the definition. It needs neither torch nor the C++ module, and runs on CuPy arrays too: what
makes or takes arrays comes from `array_module`, and only what CuPy has is used (tests/test_reference_on_cupy.py).
"""
