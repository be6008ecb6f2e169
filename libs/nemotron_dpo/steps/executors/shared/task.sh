# All processes of a stage get TERM at once, and the stage decides when it is done with it; so this shell waits, and the
# launcher, which would pass it on to its processes once more, does not hear it.
case $1 in
  dpo-torchrun) trap '' TERM ;;
  *) trap : TERM ;;
esac
run_stage "$@"
status=$?
((status == 0)) || (set -o noclobber && echo "$status" >"$job/failed") 2>/dev/null
exit "$status"
