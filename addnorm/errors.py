"""What a user can mend has one base class, so that it is never mistaken for a bug of ours."""


class Mendable(ValueError):
    """What was asked cannot be done as asked; the message says what is wrong and what to do.

    The command line tells exactly these without a traceback. Whatever else is raised, another
    ``ValueError`` included, is a bug of ours and told as one.
    """
