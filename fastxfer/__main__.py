from fastxfer.cli import main

main()
