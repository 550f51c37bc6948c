"""The server API: what a back end may do over HTTP.

requests ─▶ methods ─▶ errand ─▶ the hub's inbox          results: what is answered
               └──────▶ openapi                            api: the key, the body, errors
"""
