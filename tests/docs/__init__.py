"""Every block and command of the README and of ``docs/`` is run as it stands there.

Blocks of a page run in one new folder: its commands in order, then its Python in one new process.
Marks stand where no reader sees them: behind the language of a block, or in comments before it.

``python``, ``sh``
    Run: in forks of a process that has imported torch and TVM, by ``make docs`` in processes of
    their own. ``fresh`` behind it: always in a process of its own, with what follows. ``long``:
    only by ``make docs``. ``skip=reason``: not run, such as what needs a phone; commands of this
    program in it are still parsed by its command line.
``yaml``
    Read as a configuration of pruning.
``<!-- setup ... -->``
    Python before the next block: what the page says that the reader has.
``<!-- shorten: this -> that; ... -->``
    Replacements in the next block, so that it takes seconds.

A block without one of these languages and without a mark fails: nothing is left out by accident.
"""
