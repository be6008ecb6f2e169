# All processes of a stage get TERM at once, and the stage decides when it is done with it; so this shell waits, and
# torchrun, which would kill workers that take longer than 30 s to save, is kept out of it.
case $1 in
  torchrun)
    export PET_SIGNALS_TO_HANDLE=SIGINT,SIGHUP,SIGQUIT
    trap '' TERM
    ;;
  *) trap : TERM ;;
esac
run_stage "$@"
status=$?
((status == 0)) || (set -o noclobber && echo "$status" >"$job/failed") 2>/dev/null
exit "$status"
