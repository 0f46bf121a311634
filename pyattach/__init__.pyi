from .api import attach as attach
from .api import attach_heap as attach_heap
from .api import read as read
from .errors import PyattachError as PyattachError

__version__: str
