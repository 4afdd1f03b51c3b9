# Sourced after protocol.sh: transfer TARGET... trains on DATASET and tests on it and each target.
transfer() {
    local folders= method seed target source folder
    for method in $METHODS; do
        for seed in $SEEDS; do
            source=$OUTPUT/$DATASET/$method/${CFG}_${SHOTS}shots/seed$seed
            run "$method" "$DATASET" "$SHOTS" "$seed" "$source" $(epochs "$method" "$SHOTS")
            folders="$folders $source"
            for target in "$@"; do
                folder=$OUTPUT/evaluation/$DATASET/$method/${CFG}_${SHOTS}shots/$target/seed$seed
                run "$method" "$target" "$SHOTS" "$seed" "$folder" \
                    --eval-only --model-dir "$source" $(epochs "$method" "$SHOTS")
                folders="$folders $folder"
            done
        done
    done
    apd-table $folders --protocol transfer
}
