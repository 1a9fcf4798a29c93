"""Instances on one node. So far:

- :mod:`.taps`  tap devices, made by us and passed to QEMU as descriptors
"""
