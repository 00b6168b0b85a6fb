"""Ray Serve builders that wire mmd objects together, and the web page."""
