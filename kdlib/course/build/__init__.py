"""The course executed without a browser, and its pages."""
