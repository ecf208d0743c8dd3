"""Adapters in and out: our own directory, HF PEFT's, AdapterHub's, merged weights, llama.cpp's file, and who takes which.

    adapter.py                                an adapter apart from its base: extract, insert
    modules.py, tensors.py                    names and orientations, theirs against ours
    peft_table.py, adapterhub_table.py        what a declarative table of theirs says
    peft_methods.py, adapterhub_methods.py    one a method, used in both directions by *_read.py and *_write.py
    native.py, manifest.py, load.py           our directory; an adapter of any form on a base
    merged.py, gguf_lora.py, lint.py          exports without a way back, and what servers make of a file
"""
