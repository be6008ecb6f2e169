runs=() status=0
for one in "${jobs[@]}"; do
  state=$(sed -n 's/.*"status": "\([a-z]*\)".*/\1/p' "$one/state.json" 2>/dev/null | head -n 1)
  case $state in
    submitted | running)
      state=stopped
      printf '{"status": "stopped", "exit": 143, "reason": "cancelled, or what it waited for failed", "stage": null}\n' >"$one/state.json"
      ;;
  esac
  why=
  [[ $state != failed ]] || why=$(grep ': error: ' "$one/log.txt" 2>/dev/null | grep -v '^srun: ' | tail -n 1)
  printf '%s: %s\n' "${one##*/}" "${state:-left nothing}${why:+: $why}" >&2
  [[ $state == done ]] || status=1
  [[ $state != done || ! -s $one/run/metrics.jsonl ]] || runs+=("$one/run")
done
if ((${#runs[@]})); then
  srun --nodes=1 --ntasks=1 "${step_options[@]}" dpo-report "${runs[@]}" -o "$job/compare.html" </dev/null || status=1
fi
exit "$status"
