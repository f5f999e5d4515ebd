"""A build as one self-contained page: tables, graph pictures and the map, without a network."""

from compiler.report.page import REPORT_NAME, write_report

__all__ = ["REPORT_NAME", "write_report"]
