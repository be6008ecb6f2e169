# clear_way NUMBER PATH...: remove what a stage of that number that did not end made before the job was started again,
# for it would refuse to write over that. What was there before it first began is somebody else's.
clear_way() {
  local begun=$job/begun/$1 path
  shift
  if [[ -e $begun ]]; then
    rm -rf -- "$@"
    return
  fi
  for path; do
    [[ ! -e $path ]] || return 0
  done
  : >"$begun"
}
