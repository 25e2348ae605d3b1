"""Tests of zoo.scans."""
