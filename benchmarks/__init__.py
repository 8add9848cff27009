"""What `xsam benchmark` measures: this program beside what users would otherwise run. No part of the library."""
