from wire.producing import *  # noqa: F403
