"""The code of an exported MLflow model: MLflow copies this file and runs it when the model is loaded."""

from mlflow.models import set_model

from isoformer.predict.pyfunc import IsoformerModel

set_model(IsoformerModel())
