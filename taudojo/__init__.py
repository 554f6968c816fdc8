"""taudojo: where tool-calling customer-service agents are trained."""

__version__ = "0.1.0"
