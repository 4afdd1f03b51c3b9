# Sourced by the protocols' scripts, which take
#   [DATA=data] [DATASET=digits] [SHOTS=16] [SEEDS=1]
# (several shots or seeds: in quotes), and from the environment
#   METHODS  trainers (default: all)
#   CFG      file in configs/trainers/<trainer>/ (default: mini on the embedded data sets, else
#            vit_b32)
#   OUTPUT   folder of the runs (default: output)
#   OPTIONS  KEY VALUE pairs for every run
# Finished runs are kept, killed ones resume.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

DATA=${1:-data}
DATASET=${2:-digits}
SHOTS=${3:-16}
SEEDS=${4:-1}
OUTPUT=${OUTPUT:-output}
METHODS=${METHODS:-ZeroshotCLIP CoOp VPT IVLP MaPLe APT AdvPT AdvVPT AdvIVLP AdvMaPLe FAP APD}
case $DATASET in
    digits | letters | rendered_digits) CFG=${CFG:-mini} ;;
    *) CFG=${CFG:-vit_b32} ;;
esac

# run METHOD DATASET SHOTS SEED FOLDER [flags] [KEY VALUE]...
# The terminal shows the progress bars, FOLDER/log.txt has the rest.
run() {
    local method=$1 dataset=$2 shots=$3 seed=$4 folder=$5
    echo "== $method on $dataset, $shots shots, seed $seed ($folder/log.txt)"
    python train.py \
        --root "$DATA" \
        --seed "$seed" \
        --trainer "$method" \
        --dataset-config-file "configs/datasets/$dataset.yaml" \
        --config-file "configs/trainers/$method/$CFG.yaml" \
        --output-dir "$folder" \
        "${@:6}" DATASET.NUM_SHOTS "$shots" ${OPTIONS:-} > /dev/null
}

# epochs METHOD SHOTS: CoOp and APT train longer with more shots, but not on ImageNet; the mini
# configs do not.
epochs() {
    case $CFG/$DATASET/$1/$2 in
        mini/*) ;;
        */CoOp/1 | */APT/1 | */imagenet/CoOp/* | */imagenet/APT/*) echo OPTIM.MAX_EPOCH 50 ;;
        */CoOp/[24] | */APT/[24]) echo OPTIM.MAX_EPOCH 100 ;;
    esac
}
