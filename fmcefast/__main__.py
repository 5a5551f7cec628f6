from fmcefast.cli import main

main()
