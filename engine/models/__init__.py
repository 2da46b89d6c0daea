"""The embedded backbones: INT8 networks, a card for each, and the script that rebuilds them.

Nothing in this package is imported at run time; :mod:`engine.backbone` reads its files.
``python -m engine.models`` lists them and imports networks of others.
"""

from __future__ import annotations
