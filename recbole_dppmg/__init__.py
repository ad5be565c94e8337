"""Multimodal personalized generation for RecBole: preferences as tokens, recommendations as texts and images.

Importing the package registers the model `DPPMG` with RecBole and repairs RecBole for today's numpy, scipy,
pandas and torch. Both happen module by module, as RecBole is imported; see `recbole_dppmg.compat`.
"""

from recbole_dppmg import compat

__version__ = "0.1.0"

compat.install()
