from wire.connection import *  # noqa: F403
