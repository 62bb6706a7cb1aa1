"""The registry against distribution, over a folder and over S3."""
