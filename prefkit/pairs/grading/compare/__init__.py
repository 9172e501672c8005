"""Do two answers mean the same?"""
