"""Before a crash: will it leave a dump, and how large will that be?"""
