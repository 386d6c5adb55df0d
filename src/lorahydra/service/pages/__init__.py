"""The web page: lists, fine-tunes and forms as HTML from the server, in English and Russian.

Everything works by links and forms. If there is JavaScript, htmx replaces parts of a page: the same addresses answer a
request with the header `HX-Request` with a part. The templates escape everything that a page shows. Pages have no
inline scripts and styles, so that the content policy can forbid both.
"""
