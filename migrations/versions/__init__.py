"""One file per migration, dated and numbered."""
