#!/usr/bin/env bash
# The study of docs/study.md: search, confirmation, tables, figures and report in docs/study.
#   bash scripts/study.sh ZIPS DATA    # lays the photographs of ZIPS out in DATA first
#   bash scripts/study.sh - DATA       # they are there already
# OUTPUT (default: output/study) has the runs, FLAGS goes to apd-sweep ("--jobs 2 --threads 1").
# Finished runs are kept, those in docs/study/*runs.tar.gz too, and killed ones resume. PARTS chooses
# among: gate search confirm claims attack tables (default: these), tasks_search tasks (round 4).
# Runs are made from a clone as it is committed; DIRTY=1 lets its files differ.
set -euo pipefail
shopt -s inherit_errexit  # what fails in $(...) ends this
[ $# -eq 2 ] || { sed -n '2,8s/^# //p' "$0" >&2; exit 2; }
ZIPS=$1 DATA=$(realpath -m "$2")
[ "$ZIPS" = - ] || ZIPS=$(realpath "$ZIPS")
source "$(dirname "$0")/env.sh"

OUTPUT=${OUTPUT:-output/study}
TABLES=docs/study
DEFAULT="gate search confirm claims attack tables"
choose_parts "$DEFAULT tasks_search tasks" "$DEFAULT"
[ "$PARTS" = tables ] || committed
[ "$ZIPS" = - ] || python scripts/mini_clip/photos.py "$ZIPS" "$DATA"
mkdir -p "$OUTPUT"
# results (no prompts) of cells that have finished already: they are not run again
for archive in runs tasks_runs; do
    tar -xzf "$TABLES/$archive.tar.gz" -C "$OUTPUT" --skip-old-files
done

sweep() {
    local more=(--output "$OUTPUT" --chosen "$TABLES/search.json")
    [ "$1" != study_search ] || more=(--output "$OUTPUT")
    [ "$1" != study_gate ] || more=(--output "$OUTPUT/gate")
    [[ "$1" != study_tasks* ]] || more=(--output "$OUTPUT/${1#study_}")
    apd-sweep "configs/sweeps/$1.yaml" --root "$DATA" "${more[@]}" "${@:2}"
}
run() { for name in "$@"; do sweep "$name" ${FLAGS:-}; done; }
folders() { for name in "$@"; do sweep "$name" --folders; done; }
table() {
    if [ -z "${1// /}" ]; then echo "$3: no finished runs, no table"; return; fi
    apd-table $1 --table "$2" --markdown "$TABLES/$3.md" --json "$TABLES/$3.json" "${@:4}"
}
# over_tasks RUNS SUFFIX [OPTION...]: round 4's three tests, adjusted together: the moderator's p
# goes to the frontier, and back
arms=(--arm "control:TRAINER.APD.LAMBDA_KD=0" --source "PACS=PACS-*")
over_tasks() {
    local options=("${arms[@]}" --difference APD control "${@:3}")
    table "$1" moderator "moderator$2" "${options[@]}" --by zero-shot --at 60
    table "$1" frontier "frontier$2" "${options[@]}" --difference APD AdvIVLP \
        --family "$TABLES/moderator$2.json"
    table "$1" moderator "moderator$2" "${options[@]}" --by zero-shot --at 60 \
        --family "$TABLES/frontier$2.json"
}
# the runs of round 4 that AutoAttack is shown: the three arms at the middle radius
middle_radius() { folders study_tasks | sed -n '/EPS=4.5/{/MODE=auto\|MODE=frozen+AT/!p}'; }

# whole_tasks: of the folders on its input, those of tasks that have as many as any task
whole_tasks() {
    awk -F/tasks/ '{ line[NR] = $0; sub("/.*", "", $2); task[NR] = $2
                     if (++cells[$2] > most) most = cells[$2] }
                   END { for (i = 1; i <= NR; i++) if (cells[task[i]] == most) print line[i] }'
}

if part gate; then
    run study_gate
    finished=$(folders study_gate)
    table "$finished" methods gate
fi
if part search; then
    run study_search
    finished=$(folders study_search)
    table "$finished" search search --criterion harmonic
fi
if part confirm; then run study_zeroshot study; fi
if part claims; then
    run study_control study_teachers study_fewshot study_base2new study_base2new_eps study_shift
fi
if part attack; then
    finished=$(sweep study --trainer APD AdvIVLP --seed 1 --folders)
    apd-eval $finished --attack autoattack --subset 100
fi
if part tasks_search; then  # round 4: the control's search
    run study_tasks_search
    finished=$(folders study_tasks_search)
    table "$finished" search control_search --criterion harmonic
fi
if part tasks; then
    if [ ! -f "$TABLES/tasks_plan.json" ]; then
        echo "tasks: no $TABLES/tasks_plan.json: write it (apd-sweep --plan), commit it" >&2
        exit 2
    fi
    run study_tasks
    finished=$(middle_radius)
    apd-eval $finished --attack autoattack --subset 50
fi
if part tables; then
    confirmed=$(folders study_zeroshot study)
    table "$confirmed" methods confirmation --baseline AdvIVLP
    finished=$(sweep study --trainer APD --folders; folders study_control)
    table "$finished" ablation control
    finished=$(for name in study study_control study_teachers; do
        sweep $name --trainer APD --seed 1 --folders
    done)
    table "$finished" ablation teachers
    finished=$(sweep study_fewshot --seed 1 --folders)
    table "$finished" few-shot few-shot --baseline AdvIVLP
    finished=$(folders study_base2new)
    table "$finished" base-to-new base-to-new
    finished=$(folders study_base2new_eps)
    table "$finished" base-to-new base-to-new-eps
    finished=$(folders study_shift)
    table "$finished" transfer shift --baseline AdvIVLP
    tasks=$(folders study_tasks | whole_tasks) # when time ended, a task may have been half done
    over_tasks "$tasks" ""
    table "$tasks" frontier frontier-teachers "${arms[@]}" --arm "auto:TRAINER.APD.TEACHER.MODE=auto" \
        --arm "frozen:TRAINER.APD.TEACHER.MODE=frozen,TRAINER.APD.LAMBDA_KD=0.5" \
        --difference frozen APD --difference auto APD
    apd-plot $tasks --kind frontier --output "$TABLES" "${arms[@]}" \
        --difference APD AdvIVLP --difference APD control
    apd-plot $tasks --kind moderator --output "$TABLES" "${arms[@]}" --difference APD control
    over_tasks "$(sed '/clothing\|scene15\|trashnet\|pacs_cartoon/d' <<< "$tasks")" -confirmation
    over_tasks "$(sed -n '/food101\|caltech101\|cub100/p' <<< "$tasks")" -large
    over_tasks "$tasks" -without-chance --without-flag chance
    apd-report $confirmed --root "$DATA" --baseline AdvIVLP --output "$TABLES/report.html"
    apd-plot $confirmed --kind scatter --output "$TABLES"
fi
