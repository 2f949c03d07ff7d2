"""The mathematics of gpt-oss on plain tensors, one operation a file.

Every file states its formula, offers one public operation and holds the plain torch body that
defines what is right. `backend.select` is the one place where a faster body is chosen.
Nothing here knows about checkpoints, modules or hooks: an operation that lets a caller look inside
takes a *tap*, a small tuple of functions called with the intermediate tensors.
"""
