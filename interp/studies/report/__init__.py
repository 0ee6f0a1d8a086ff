"""Reports in Markdown and HTML: sections, tables, figures."""
