"""Recipes that connect a PACS with the spool; README.md beside this file tells how."""
