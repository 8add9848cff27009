"""The web page and the REST endpoint of `xsam demo`: uploads are checked here, answers come from `xsam.api`. No part of
the library."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: nothing is sent anywhere
