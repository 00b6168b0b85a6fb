"""mmd: an assistant that talks with words and pictures (KDSL, DR/SDR/MDR, ConKD), rebuilt on Ray.

The library holds domain code only and never imports Ray; ``jobs`` and ``serve_apps`` do.
"""

__version__ = "0.1.0"
